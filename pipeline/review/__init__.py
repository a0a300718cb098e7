"""The loop with people: what they are asked, what they answer, and what that shows."""
