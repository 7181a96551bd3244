"""The HTTP interface: OpenAI's endpoints, and those of the memories."""
