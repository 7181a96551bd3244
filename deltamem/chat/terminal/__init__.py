"""`deltamem chat`: a conversation in the terminal, with a memory that can be looked at, saved and switched off."""
