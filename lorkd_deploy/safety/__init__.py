"""Answers a department can use safely: how sure, whose picture, and where the network looked.

NumPy alone, so that the device that answers does the same as the machine that trained.
"""
