"""What a merge is to do: every tensor's place and rules, the result's config and files. And what that costs."""
