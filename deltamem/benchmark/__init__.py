"""What a memory costs: time and bytes of an adapted model beside its bare backbone. `deltamem bench` runs it."""
