"""MIPS indexes behind one protocol and one registry."""
