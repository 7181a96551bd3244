"""Conversations whose memory outlives their context: sessions, their files, and chats as tokens."""
