"""The addresses that most tests send from and to."""

SENDER, WHO = "a@x.example", "b@y.example"
