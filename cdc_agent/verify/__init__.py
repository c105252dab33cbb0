"""The three-way audit: does the index hold what the source says, and does the store hold what the manifests say?"""
