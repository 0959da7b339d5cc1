"""What every program shares towards the person who typed its name.

`text` makes safe what others chose, `output` is where text leaves a program, `numbers` are the types of
numbers on the command line, and `program` is the frame that all commands run in: how errors look, and what
happens when the output fails.
"""
