"""The intermediate representation of qcc: values (formats, layouts, targets), dialects, weights, and a reference."""
