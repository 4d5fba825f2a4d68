"""Captioned emoji at 64x64 in three styles: pictures, captions and changed copies."""
