"""Campaigns and their ratings: what is shown to whom, what they answered, and what several answers come to.

Stages meet here: the rating page writes, the gate and the export read. Nothing here talks to models or draws pages.
"""
