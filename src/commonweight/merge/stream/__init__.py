"""The machine under the methods: pieces of tensors through threads, from any source into any sink."""
