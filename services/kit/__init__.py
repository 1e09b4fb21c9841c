"""What every service gets; knows no domain. One named module per idea."""
