namespace llmctl {}
