"""How fast kytecron is, beside what the machine itself can do in the same run. `make bench`; not tests."""
