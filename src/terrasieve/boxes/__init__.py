"""Boxes: the geometry of horizontal and oriented boxes, pure tensors in, tensors out; everything on detection uses it.

An oriented box is (cx, cy, w, h, angle) in pixels and radians: ``angle`` is the direction of the side ``w`` from the x
axis, clockwise as seen, since y points down. Canonical ("le90") boxes have w >= h and -pi/2 <= angle < pi/2. A
horizontal box is (left, top, right, bottom) in pixels; (0, 0) is the outer corner of the first pixel.
"""
