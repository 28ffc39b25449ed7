"""The other libraries, used as their documentation advises and as well as we know how."""
