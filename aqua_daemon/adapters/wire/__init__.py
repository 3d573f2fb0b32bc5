"""Messages to events, answers to messages: the only place that knows protobuf and checks it.

`requests` and `replies` are the API's, `frames` the presence socket's, `checks` what all are held
to. What a keeper says is checked where its link is.
"""
