"""The wire: generated messages and stubs, and what both ends of it share.

The `*_pb2*` files are made from the `.proto` files beside them by grpcio-tools 1.71.2; a test makes
them again and compares. Written by hand are `framing` and `frame_link`, how frames cross a socket,
and `agreement`, what two releases speak with each other.
"""
