"""A server with a memory for every user: turns of many users in one batch, their memories in a database, OpenAI's interface."""
