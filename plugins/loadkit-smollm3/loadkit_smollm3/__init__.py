"""loadkit-smollm3: SmolLM3 as a plugin of loadkit, which sees `plugin` alone; the classes load when used."""
