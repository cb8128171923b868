"""Images that come with the package, for first tries."""
