"""What variants on a CPU share: compilation and threads, vector code, and walks over rows and columns."""
