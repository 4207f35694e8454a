"""Pure statistics and arithmetic, under everything else: numbers in, numbers out."""
