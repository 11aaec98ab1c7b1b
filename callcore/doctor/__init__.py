"""``callcore doctor``: checks of this site, each with what to do when it fails.

``site`` looks at this machine, ``pbx`` asks Asterisk by its manager interface, ``call`` places a
test call and follows it to its document.
"""
