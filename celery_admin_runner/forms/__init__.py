"""The form of a task: its parameters as fields, its arguments as JSON, and how it is sent."""
