"""What several methods share: order statistics, masks, signs, dropping, rounding; on pieces of tensors."""
