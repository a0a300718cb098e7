"""The demo: made-up support tickets, and the whole pipeline over them."""
