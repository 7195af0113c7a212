"""What runs where, and when: a pure state machine. Begin with :mod:`.dispatcher`."""
