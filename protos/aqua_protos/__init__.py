"""The wire: generated messages and stubs, and `framing`, how frames cross a socket.

The `*_pb2*` files are made from the `.proto` files beside them by grpcio-tools 1.71.2; a test makes
them again and compares. `framing.py` is the one module here that is written by hand.
"""
