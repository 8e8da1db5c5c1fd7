"""Pictures, charts and viewers.

panels   pictures of slices
charts   pictures of losses and scores
viewers  a volume in three planes, two images under a wiping edge, frames by sliders
"""
