"""What regression with uncertainty is judged by."""
