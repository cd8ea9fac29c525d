"""The demo: tracking server, trained model, promotion, deployment, and flights that its monitors judge."""
