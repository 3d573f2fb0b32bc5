"""The broker as a function of events and time: no clock, no input or output, no technology."""
