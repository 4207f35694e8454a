"""`batchline evidence`: what half an hour of a GPU is best spent on, in parts, in at most
eight files.
"""
