"""Where other libraries are met: each package knows one of them, and uses the client as anybody does."""
