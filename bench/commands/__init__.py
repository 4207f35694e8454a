"""The commands of `batchline`, one file per command."""
