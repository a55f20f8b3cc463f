"""The pages: registered on the default admin site; other sites register the same classes."""
