"""From a recipe to tasks: every tensor of the result with its method and its inputs. And what that costs."""
