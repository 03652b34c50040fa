"""The machine under the methods: pieces of tensors through threads. From any source into any sink."""
