"""Captioned emoji at 64x64 in three styles: images, captions and changed copies."""
