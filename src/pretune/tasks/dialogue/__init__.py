"""Replies: chit-chat and instructions."""
