"""What the emulator executes of this repository, in processes of their own: verdicts and
counts for a command, and those that are pinned.
"""
