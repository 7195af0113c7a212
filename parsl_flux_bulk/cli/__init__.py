"""Commands that people type. Each is a thin layer over a public class."""
