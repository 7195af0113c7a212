"""What runs inside jobs, with the standard library alone. Begin with :mod:`.main`."""
