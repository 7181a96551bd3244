"""`deltamem chat`: a conversation in the terminal, with a memory that can be shown, saved and switched off."""
