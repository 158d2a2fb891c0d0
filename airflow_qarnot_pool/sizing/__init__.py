"""Which size of a pool would have been right: the demand of a past run, and its replay at other sizes."""
