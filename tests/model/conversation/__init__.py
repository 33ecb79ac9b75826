"""Conversations: templates, control tokens, reasoning and tool calls."""
