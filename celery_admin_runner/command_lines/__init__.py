"""A management command's parser as typed parameters, and values as its command line."""
