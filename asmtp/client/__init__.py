"""One connection: AsyncSMTP, AsyncSMTP_SSL, AsyncLMTP."""
