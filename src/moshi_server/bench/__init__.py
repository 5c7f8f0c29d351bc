"""Load for a running server: virtual clients over the real socket, and what they saw; it never imports torch."""
