"""The SDK for programs that talk to a server; it never imports torch."""
